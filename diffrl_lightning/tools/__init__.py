"""What ``diffrl NAME`` runs: each module is one function of its own name."""
