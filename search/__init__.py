"""What to keep: budgets, feasible sets, the genetic search, the finish on the device."""
