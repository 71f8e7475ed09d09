//! DMA memory: hugetlb pools with a plain-page fallback, per-core buffers, shared regions.
