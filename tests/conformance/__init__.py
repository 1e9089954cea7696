"""One table of what events mean for an activity, for everything that decides it."""
