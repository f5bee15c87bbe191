// Calls on network interfaces and taps: each is one ioctl or socket call, whose structures and numbers Swift does not
// import. 0 or a descriptor where it worked, else -1 and errno. Caller: NetBackend; any thread.
#pragma once

#include <stdint.h>

enum { CLX_IFNAMSIZ = 16 };

/// Flags of a tap (linux/if_tun.h).
enum {
  CLX_IFF_TUN = 0x0001, CLX_IFF_TAP = 0x0002, CLX_IFF_NO_PI = 0x1000, CLX_IFF_VNET_HDR = 0x4000, CLX_IFF_MULTI_QUEUE = 0x0100,
  CLX_IFF_PERSIST = 0x0800,
};
/// Flags of an interface (linux/if.h).
enum { CLX_IFF_UP = 0x1, CLX_IFF_RUNNING = 0x40, CLX_IFF_LOWER_UP = 0x10000 };

/// The ioctls of what is done with a tap and its interface while it serves (linux/if_tun.h, linux/sockios.h), in `clx_tap_controls`.
enum { CLX_TAP_CONTROL_COUNT = 10 };
extern const uint32_t clx_tap_controls[CLX_TAP_CONTROL_COUNT];

/// Attaches an opened /dev/net/tun to the tap `name`, which is made where it does not exist (TUNSETIFF).
int clx_tap_attach(int fd, const char *name, uint16_t flags);
/// What a descriptor is attached to; EBADFD or ENOTTY where it is no tap (TUNGETIFF). `name`: 16 bytes.
int clx_tap_facts(int fd, char *name, uint16_t *flags);
/// What the tap may leave undone in frames that it hands out: TUN_F_* (TUNSETOFFLOAD).
int clx_tap_set_offload(int fd, uint32_t offload);
/// The size of the header before each frame (TUNSETVNETHDRSZ, TUNGETVNETHDRSZ).
int clx_tap_set_header_size(int fd, int32_t bytes);
int clx_tap_header_size(int fd, int32_t *bytes);
/// Bytes that may be on their way from a descriptor before it takes no more; INT32_MAX, unless somebody set less
/// (TUNGETSNDBUF).
int clx_tap_send_buffer(int fd, int32_t *bytes);
/// Takes a descriptor's queue into service or out of it (TUNSETQUEUE).
int clx_tap_set_queue(int fd, int attached);
/// Whether the tap outlives its last descriptor (TUNSETPERSIST).
int clx_tap_set_persistent(int fd, int persistent);

// Interfaces by name; `socket` is any socket, and decides the network namespace.
/// A socket to ask with.
int clx_link_socket(void);
int clx_link_index(int socket, const char *name, int32_t *index);
int clx_link_flags(int socket, const char *name, uint32_t *flags);
int clx_link_set_up(int socket, const char *name, int up);
int clx_link_mtu(int socket, const char *name, int32_t *mtu);
/// The driver's name and, for a tap, "tap" as its bus; 32 bytes each (ETHTOOL_GDRVINFO).
int clx_link_driver(int socket, const char *name, char *driver, char *bus);
/// In Mb/s, -1 unknown; 0 half, 1 full, 255 unknown (ETHTOOL_GSET).
int clx_link_speed(int socket, const char *name, uint32_t *speed, uint8_t *duplex);
/// The text that an administrator sees beside an interface (rtnetlink, IFLA_IFALIAS), by the interface's number, in the calling
/// thread's namespace: set, 64 bytes at most; read, cut to `size` with its NUL, empty where there is none.
int clx_link_set_alias(int32_t index, const char *alias);
int clx_link_alias(int32_t index, char *alias, uint32_t size);
/// Puts an interface into a bridge (SIOCBRADDIF).
int clx_bridge_add(int socket, const char *bridge, int32_t index);

/// 1 where an interface is a bridge's port already; asked of the socket's own namespace, which sysfs may not show.
int clx_bridge_has(int socket, const char *bridge, int32_t index);
/// Gives the calling thread a network namespace of its own (unshare, CLONE_NEWNET).
int clx_unshare_network(void);
/// A socket that sends what is written to it, a virtio_net_hdr of ten bytes and a frame, out of an interface (AF_PACKET).
int clx_packet_socket(int32_t index);
/// A non-blocking socket that becomes readable when an interface changes (rtnetlink, RTMGRP_LINK).
int clx_link_watch(void);
