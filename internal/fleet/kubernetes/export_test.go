package kubernetes

import (
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spillway/spillway/internal/fleet"
)

// EndpointSlice is an EndpointSlice as it is read.
type EndpointSlice = endpointSlice

// Targets makes the targets of objects as a server has them.
func (c *Config) Targets(all []*EndpointSlice, pods []*meta.PartialObjectMetadata) ([]fleet.Target, []string, error) {
	var in []slice
	for _, s := range all {
		_, one, _ := readSlice(s)
		in = append(in, one)
	}
	var selected []pod
	for _, p := range pods {
		_, one, _ := readPod(p)
		selected = append(selected, one)
	}
	return c.targets(in, selected)
}

// MaxObjects is the bound of a store.
const MaxObjects = maxObjects

// Store is a store of slices.
type Store struct{ *store[slice] }

// NewStore returns a store that is not filled.
func NewStore(changed chan<- struct{}) Store { return Store{newStore(readSlice, changed)} }

// Len is the number of objects kept.
func (s Store) Len() (int, bool, error) {
	all, known, err := s.values()
	return len(all), known, err
}
