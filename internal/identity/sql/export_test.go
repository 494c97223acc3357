package sql

// Bound sets the most keys that a table may have.
func Bound(t *Table, most int) { t.most = most }
