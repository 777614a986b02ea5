"""Windows that slide over one channel at a time: depthwise convolution and pooling."""
