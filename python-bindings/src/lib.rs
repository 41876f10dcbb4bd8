//! The private bridge of the Python package covey.
