"""Agent frameworks with activities.

The modules of this package have what every framework needs, and import none. Each framework has a package below it.
"""
