"""Adapters for other people's tools."""
