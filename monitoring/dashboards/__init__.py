"""Grafana's dashboards as code: small functions that give Grafana's own JSON model as plain dictionaries."""
