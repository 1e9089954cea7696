"""What agentexec-otel costs and how fast it is, each figure beside a baseline measured in the same run.

``make bench`` runs everything; ``python -m benchmarks --help`` lists the options.
"""
