"""Tests of the command line, in a pipe and in a terminal."""
