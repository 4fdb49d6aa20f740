"""What the documentation's site is built with: pages made from code, formulas, screenshots (`make docs`)."""
