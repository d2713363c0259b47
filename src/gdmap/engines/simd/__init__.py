"""A compiler from traced functions of one trajectory to native code for many, one in each vector lane."""
