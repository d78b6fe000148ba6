"""From traces to labels: a jury of three judges, strata by their agreement, experts where they disagree."""
