package store

// On makes a store write to a disk.
func (s *Store) On(d Disk) { s.disk = d }
