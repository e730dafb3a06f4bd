# Sourced by install and uninstall: where things go. The units in scripts/systemd name the same places.

prefix=/opt/netctl
bin=/usr/local/bin
state=/var/lib/netctl
units=/etc/systemd/system
options=/etc/default/netctl-node
user=netctl
