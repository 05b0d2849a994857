"""Names of metrics, the profile that drift is measured against, rules, dashboards. Uses nothing of ours."""
