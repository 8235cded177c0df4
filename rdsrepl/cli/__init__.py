"""Layer 7: the command line. Entry point: ``main.app``; one module per noun, one package per noun with many verbs."""
