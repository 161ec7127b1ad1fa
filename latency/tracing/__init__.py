"""How an ordinary module becomes a `Network`: its graph, its layers, and which channels are the same ones."""
