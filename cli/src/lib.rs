//! keelblock (a whole cluster on this machine) and keelctl.
