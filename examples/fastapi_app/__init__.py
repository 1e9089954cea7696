"""A web service that lets agents do research, and shows live what they do: ../README.md."""
