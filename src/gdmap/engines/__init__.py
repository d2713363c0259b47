"""How traced functions are evaluated and iterated; knows functions and arrays, nothing of losses."""
