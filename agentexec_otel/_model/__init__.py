"""Values and rules: what an activity is, and how its events fold into its state. No I/O, no locks, no settings."""
