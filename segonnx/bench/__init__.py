"""Timing runtimes side by side on the same inputs."""
