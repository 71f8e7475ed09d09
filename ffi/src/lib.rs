//! Raw operating-system interfaces behind safe, documented functions.
