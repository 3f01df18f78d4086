"""STAGE 3: test split -> scores, tables, report."""
