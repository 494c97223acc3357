package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Names under which the switch is kept.
const (
	emergencyFile   = "emergency.json"
	emergencyBroken = "emergency.json.broken" // one that could not be read, for the operator
)

// emergencyVersion is the form of the file. A change that an older release would
// misread takes the next number.
const emergencyVersion = 1

// keptEmergency is the file's content. The profile is not in it: it is what the
// configuration says when the file is read.
type keptEmergency struct {
	Version int       `json:"version"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	By      string    `json:"by,omitempty"`
	From    string    `json:"from,omitempty"`
	Reason  string    `json:"reason,omitempty"`
}

// encode writes a state that is on.
func (s *EmergencyState) encode() ([]byte, error) {
	data, err := json.MarshalIndent(keptEmergency{
		Version: emergencyVersion, Since: s.Since.UTC(), Until: s.Until.UTC(), By: s.By.Name, From: s.By.From, Reason: s.Reason,
	}, "", "  ")
	return append(data, '\n'), err
}

// decodeEmergency reads a file.
func decodeEmergency(data []byte) (*EmergencyState, error) {
	var k keptEmergency
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	by := Operator{Name: k.By, From: k.From}
	switch {
	case k.Version != emergencyVersion:
		return nil, fmt.Errorf("unknown version %d; this release writes %d", k.Version, emergencyVersion)
	case k.Since.IsZero() || !k.Since.Before(k.Until):
		return nil, errors.New("it ends before it begins")
	}
	if err := checkOrder(by, k.Reason, minExpiry); err != nil {
		return nil, err
	}
	return &EmergencyState{On: true, Since: k.Since, Until: k.Until, By: by, Reason: k.Reason}, nil
}

// restore reads what was kept, and leaves what there is to say and to do about it.
func (e *Emergency) restore(now time.Time) {
	data, err := e.keep.Read(emergencyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		e.later(func() {
			e.log.Error("what was kept of the emergency mode cannot be read; it begins switched off", "err", err)
		})
		return
	}
	kept, err := decodeEmergency(data)
	switch {
	case err != nil:
		e.later(func() {
			e.log.Error("what was kept of the emergency mode is broken; it begins switched off", "file", emergencyFile, "set_aside_as", emergencyBroken, "err", err)
			e.setAside(data)
		})
	case !kept.on(now):
		e.later(e.forget)
	default:
		if latest := now.Add(MaxExpiry).Round(0); kept.Until.After(latest) {
			kept.Until = latest // the clock was set back, or the file was made by hand
		}
		kept.Profile = e.live.Load().Profile
		e.live.Store(kept)
		e.later(func() { e.audit("emergency mode goes on after a restart", kept, kept.By) })
	}
}

// setAside keeps a broken file for the operator, out of the way.
func (e *Emergency) setAside(broken []byte) {
	if err := e.keep.Write(emergencyBroken, broken); err != nil {
		e.log.Error("a broken file could not be set aside", "file", emergencyFile, "err", err)
		return
	}
	e.forget()
}

// forget removes what is kept of an emergency that is over.
func (e *Emergency) forget() {
	if err := e.keep.Remove(emergencyFile); err != nil {
		e.log.Error("an emergency that is over could not be forgotten; a restart will ignore it", "err", err)
	}
}

// forgetful is the Keeper of a switch that does not outlive its process.
type forgetful struct{}

// Read implements Keeper.
func (forgetful) Read(string) ([]byte, error) { return nil, fs.ErrNotExist }

// Write implements Keeper.
func (forgetful) Write(string, []byte) error { return nil }

// Remove implements Keeper.
func (forgetful) Remove(string) error { return nil }
