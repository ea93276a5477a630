"""Tools for testing code that runs on this library, and for testing new parts of it.

``conformance``
    Checks that a transport keeps every promise; for authors of transports.
``clusters``
    Clusters for the length of a ``with`` block: real workers, or a whole cluster inside the test's interpreter.

What this package does not know: any test framework. A check is a function that raises `AssertionError`.
"""
