"""Passes: plain functions from graph to graph, each named for what it does, its docstring the rewrite."""
