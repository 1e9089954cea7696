"""taskiq: the middleware that turns tasks into activities, and the brokers of `ax.Pool`."""
