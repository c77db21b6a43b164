"""The Autobahn test suite's cases for servers (sections 1 to 7, 9 and 10), written anew: that suite needs Python 2.

`python -m benchmarks.autobahn` prints a verdict for each. Sections 12 and 13 are compression, which nobody is offered.
"""
