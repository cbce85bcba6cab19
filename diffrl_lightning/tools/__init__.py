"""Tools beside training: each module a function of the same name, which ``diffrl`` runs."""
