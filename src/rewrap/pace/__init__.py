"""How fast a run works: one gate for each budget, and what makes it go slower or wait."""
