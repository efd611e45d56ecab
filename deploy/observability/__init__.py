"""Dashboards and alerts as files, made from two tables: ``python -m deploy.observability``."""
