"""jaxfl's server in other people's loops; each module needs the extra of its name."""
