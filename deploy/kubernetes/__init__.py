"""Rollouts of a Helm release: the same state machine, gate and ledger, carried out by helm and two ConfigMaps."""
