"""From result files to what people read: statistics, tables, plots, videos and self-contained HTML reports."""
