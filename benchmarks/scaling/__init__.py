"""Memory and step time on paper, from sizes, measured terms and the hardware's data sheets."""
