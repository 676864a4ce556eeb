"""Explanations outside of the framework: files that hold one as a graph, and the engines that run them."""
