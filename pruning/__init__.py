"""How good a structure is: networks, PruningNet, training, evaluation, extraction."""
