"""From an archive to traffic: the node, the local stack, the command line."""
