//! NVMe and NVMe/TCP types, PDU codec and a small initiator.
