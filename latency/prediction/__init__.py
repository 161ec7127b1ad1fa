"""From a table to the milliseconds of any widths: what one kernel costs, and what a network adds up to."""
