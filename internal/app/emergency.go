package app

import (
	"errors"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/admission"
)

// emergencySwitch is the emergency switch as operators reach it.
type emergencySwitch struct{ *admission.Emergency }

// State implements admin.Emergency.
func (e emergencySwitch) State() admin.EmergencyState {
	s, _ := emergencyState(e.Emergency.State(time.Now()), nil)
	return s
}

// On implements admin.Emergency.
func (e emergencySwitch) On(o admin.EmergencyOrder) (admin.EmergencyState, error) {
	return emergencyState(e.Emergency.On(time.Now(), admission.Operator{Name: o.By, From: o.From}, o.Reason, o.Expiry))
}

// Off implements admin.Emergency.
func (e emergencySwitch) Off(o admin.EmergencyOrder) (admin.EmergencyState, error) {
	return emergencyState(e.Emergency.Off(time.Now(), admission.Operator{Name: o.By, From: o.From}))
}

// emergencyState puts a state into the words of admin. An order that is in force
// but not kept is a warning.
func emergencyState(s admission.EmergencyState, err error) (admin.EmergencyState, error) {
	v := admin.EmergencyState{
		On: s.On, Since: s.Since, Until: s.Until, By: s.By.Name, From: s.By.From, Reason: s.Reason,
		Profile: admin.EmergencyProfile{Shed: []string{}, StandbyPools: s.Profile.StandbyPools, Brownout: s.Profile.Brownout.String()},
	}
	for _, c := range s.Profile.Shed {
		v.Profile.Shed = append(v.Profile.Shed, c.String())
	}
	if errors.Is(err, admission.ErrNotKept) {
		v.Warning, err = err.Error(), nil
	}
	return v, err
}

var _ admin.Emergency = emergencySwitch{}
