// Network interfaces and taps, see clx_net.h.
#include "CLinux.h"

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

const uint32_t clx_tap_controls[CLX_TAP_CONTROL_COUNT] = {
    TUNSETIFF, TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNGETVNETHDRSZ, TUNSETQUEUE, TUNSETPERSIST,
    SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFINDEX,
};

static struct ifreq request_for(const char *name) {
  struct ifreq request;
  memset(&request, 0, sizeof request);
  strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
  return request;
}

int clx_tap_attach(int fd, const char *name, uint16_t flags) {
  struct ifreq request = request_for(name);
  request.ifr_flags = (short)flags;
  return ioctl(fd, TUNSETIFF, &request);
}

int clx_tap_facts(int fd, char *name, uint16_t *flags) {
  struct ifreq request;
  memset(&request, 0, sizeof request);
  if (ioctl(fd, TUNGETIFF, &request) != 0) return -1;
  memcpy(name, request.ifr_name, sizeof request.ifr_name);
  *flags = (uint16_t)request.ifr_flags;
  return 0;
}

int clx_tap_set_offload(int fd, uint32_t offload) { return ioctl(fd, TUNSETOFFLOAD, (unsigned long)offload); }

int clx_tap_set_header_size(int fd, int32_t bytes) { return ioctl(fd, TUNSETVNETHDRSZ, &bytes); }

int clx_tap_header_size(int fd, int32_t *bytes) { return ioctl(fd, TUNGETVNETHDRSZ, bytes); }

int clx_tap_send_buffer(int fd, int32_t *bytes) { return ioctl(fd, TUNGETSNDBUF, bytes); }

int clx_tap_set_queue(int fd, int attached) {
  struct ifreq request;
  memset(&request, 0, sizeof request);
  request.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
  return ioctl(fd, TUNSETQUEUE, &request);
}

int clx_tap_set_persistent(int fd, int persistent) { return ioctl(fd, TUNSETPERSIST, (unsigned long)persistent); }

int clx_link_socket(void) { return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); }

int clx_link_index(int socket, const char *name, int32_t *index) {
  struct ifreq request = request_for(name);
  if (ioctl(socket, SIOCGIFINDEX, &request) != 0) return -1;
  *index = request.ifr_ifindex;
  return 0;
}

int clx_link_flags(int socket, const char *name, uint32_t *flags) {
  struct ifreq request = request_for(name);
  if (ioctl(socket, SIOCGIFFLAGS, &request) != 0) return -1;
  *flags = (uint16_t)request.ifr_flags;
  return 0;
}

int clx_link_set_up(int socket, const char *name, int up) {
  struct ifreq request = request_for(name);
  if (ioctl(socket, SIOCGIFFLAGS, &request) != 0) return -1;
  if (up) {
    request.ifr_flags |= IFF_UP;
  } else {
    request.ifr_flags &= ~IFF_UP;
  }
  return ioctl(socket, SIOCSIFFLAGS, &request);
}

int clx_link_mtu(int socket, const char *name, int32_t *mtu) {
  struct ifreq request = request_for(name);
  if (ioctl(socket, SIOCGIFMTU, &request) != 0) return -1;
  *mtu = request.ifr_mtu;
  return 0;
}

int clx_link_driver(int socket, const char *name, char *driver, char *bus) {
  struct ethtool_drvinfo info;
  memset(&info, 0, sizeof info);
  info.cmd = ETHTOOL_GDRVINFO;
  struct ifreq request = request_for(name);
  request.ifr_data = (void *)&info;
  if (ioctl(socket, SIOCETHTOOL, &request) != 0) return -1;
  memcpy(driver, info.driver, 32);
  memcpy(bus, info.bus_info, 32);
  return 0;
}

int clx_link_speed(int socket, const char *name, uint32_t *speed, uint8_t *duplex) {
  struct ethtool_cmd command;
  memset(&command, 0, sizeof command);
  command.cmd = ETHTOOL_GSET;
  struct ifreq request = request_for(name);
  request.ifr_data = (void *)&command;
  if (ioctl(socket, SIOCETHTOOL, &request) != 0) return -1;
  *speed = ethtool_cmd_speed(&command);
  *duplex = command.duplex;
  return 0;
}

int clx_bridge_add(int socket, const char *bridge, int32_t index) {
  struct ifreq request = request_for(bridge);
  request.ifr_ifindex = index;
  return ioctl(socket, SIOCBRADDIF, &request);
}

int clx_bridge_has(int socket, const char *bridge, int32_t index) {
  // By port number, 0 where there is none.
  int indices[1024] = {0};
  unsigned long arguments[4] = {BRCTL_GET_PORT_LIST, (unsigned long)indices, 1024, 0};
  struct ifreq request = request_for(bridge);
  request.ifr_data = (void *)arguments;
  if (ioctl(socket, SIOCDEVPRIVATE, &request) < 0) return 0;
  for (int port = 0; port < 1024; port++) {
    if (indices[port] == index) return 1;
  }
  return 0;
}

/// Sends one rtnetlink request and reads the first answer: its length, or -1 and errno.
static ssize_t ask_rtnetlink(const void *request, size_t length, void *answer, size_t room) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) return -1;
  ssize_t count = send(fd, request, length, 0);
  if (count >= 0) count = recv(fd, answer, room, 0);
  int code = errno;
  close(fd);
  errno = code;
  return count;
}

int clx_link_set_alias(int32_t index, const char *alias) {
  struct {
    struct nlmsghdr head;
    struct ifinfomsg link;
    struct rtattr attribute;
    char text[64];
  } request;
  memset(&request, 0, sizeof request);
  size_t length = strlen(alias);
  if (length > sizeof request.text) length = sizeof request.text;
  request.attribute.rta_type = IFLA_IFALIAS;
  request.attribute.rta_len = (unsigned short)RTA_LENGTH(length);
  memcpy(request.text, alias, length);
  request.head.nlmsg_len = (uint32_t)(NLMSG_LENGTH(sizeof request.link) + RTA_SPACE(length));
  request.head.nlmsg_type = RTM_SETLINK;
  request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.link.ifi_index = index;
  struct {
    struct nlmsghdr head;
    struct nlmsgerr error;
    char rest[256];
  } answer;
  ssize_t count = ask_rtnetlink(&request, request.head.nlmsg_len, &answer, sizeof answer);
  if (count < 0) return -1;
  if (count < (ssize_t)NLMSG_LENGTH(sizeof answer.error) || answer.head.nlmsg_type != NLMSG_ERROR) {
    errno = EPROTO;
    return -1;
  }
  errno = -answer.error.error;
  return answer.error.error == 0 ? 0 : -1;
}

int clx_link_alias(int32_t index, char *alias, uint32_t size) {
  struct {
    struct nlmsghdr head;
    struct ifinfomsg link;
  } request;
  memset(&request, 0, sizeof request);
  request.head.nlmsg_len = sizeof request;
  request.head.nlmsg_type = RTM_GETLINK;
  request.head.nlmsg_flags = NLM_F_REQUEST;
  request.link.ifi_index = index;
  _Alignas(struct nlmsghdr) char answer[16384];
  ssize_t count = ask_rtnetlink(&request, sizeof request, answer, sizeof answer);
  if (count < 0) return -1;
  struct nlmsghdr *head = (struct nlmsghdr *)answer;
  if (!NLMSG_OK(head, (size_t)count) || head->nlmsg_type != RTM_NEWLINK) {
    errno = ENODEV;
    return -1;
  }
  memset(alias, 0, size);
  struct ifinfomsg *link = NLMSG_DATA(head);
  int left = (int)IFLA_PAYLOAD(head);
  for (struct rtattr *attribute = IFLA_RTA(link); RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
    if (attribute->rta_type != IFLA_IFALIAS) continue;
    size_t length = RTA_PAYLOAD(attribute);
    memcpy(alias, RTA_DATA(attribute), length < size ? length : size - 1);
  }
  return 0;
}

int clx_unshare_network(void) { return unshare(CLONE_NEWNET); }

int clx_packet_socket(int32_t index) {
  // Protocol 0: it receives nothing.
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  struct sockaddr_ll address;
  memset(&address, 0, sizeof address);
  address.sll_family = AF_PACKET;
  address.sll_ifindex = index;
  int on = 1;
  if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) == 0 &&
      bind(fd, (struct sockaddr *)&address, sizeof address) == 0)
    return fd;
  int code = errno;
  close(fd);
  errno = code;
  return -1;
}

int clx_link_watch(void) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
  if (fd < 0) return -1;
  struct sockaddr_nl address;
  memset(&address, 0, sizeof address);
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
  int code = errno;
  close(fd);
  errno = code;
  return -1;
}
