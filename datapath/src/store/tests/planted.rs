//! Every rule left out on purpose is found.
