"""What a device is, how its models are timed, when the times can be trusted, and the table that keeps them."""
