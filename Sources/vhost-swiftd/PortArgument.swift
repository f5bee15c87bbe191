// A switch's port as a person writes it: a socket's path, or the uplink's tap, and what the port is to be, separated by commas.

import ArgumentParser
import DeviceKit
import NetBackend
import SwitchBackend

/// `PATH[,vlan=N][,trunk=N+N…|all][,isolated][,mac=ADDRESS][,flood=RATE]`. A path has no comma in it.
struct PortArgument {
  let path: String
  let configuration: PortConfiguration

  init(parsing text: String) throws {
    let parts = text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    path = parts[0]
    guard !path.isEmpty else { throw ValidationError("expected a socket's path first") }
    var configuration = PortConfiguration()
    var network: UInt16?
    var trunk: Set<UInt16>?
    var seen: Set<String> = []
    for part in parts.dropFirst() {
      let (name, value) = Self.split(part)
      guard seen.insert(name).inserted else { throw ValidationError("'\(name)' is given twice") }
      switch (name, value) {
      case ("isolated", nil): configuration.isIsolated = true
      case ("vlan", let value?): network = try Self.number(value)
      case ("trunk", "all"): trunk = Set(PortNetworks.numbers)
      case ("trunk", let value?):
        trunk = Set(
          try value.split(separator: "+", omittingEmptySubsequences: false).map {
            try Self.number(String($0))
          })
      case ("mac", let value?):
        guard let mac = MACAddress(value), !mac.isMulticast, mac.value != 0 else {
          throw ValidationError("mac=\(value): expected a card's address, such as 52:54:00:12:34:56")
        }
        configuration.mac = mac
      case ("flood", let value?):
        guard let rate = UInt64(value), (1...1_000_000_000).contains(rate) else {
          throw ValidationError("flood=\(value): expected frames a second, such as 1000")
        }
        configuration.floods = Rate(perSecond: rate)
      default:
        throw ValidationError(
          "'\(part)': expected vlan=N, trunk=N+N (or trunk=all), isolated, mac=ADDRESS or flood=N")
      }
    }
    if let trunk {
      configuration.networks = .trunk(native: network, allowed: trunk)
    } else if let network {
      configuration.networks = .access(network)
    }
    self.configuration = configuration
  }

  private static func split(_ part: String) -> (name: String, value: String?) {
    guard let equals = part.firstIndex(of: "=") else { return (part, nil) }
    return (String(part[..<equals]), String(part[part.index(after: equals)...]))
  }

  private static func number(_ text: String) throws -> UInt16 {
    guard text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
      let number = UInt16(text), PortNetworks.numbers.contains(number)
    else {
      throw ValidationError("'\(text)': expected a VLAN's number, 1 to 4094")
    }
    return number
  }
}

/// `NAME[,vlan=N][,trunk=N+N…|all][,isolated][,flood=RATE]`: the uplink's tap.
struct UplinkArgument {
  let tap: String
  let configuration: PortConfiguration

  init(parsing text: String) throws {
    guard let first = text.first, first != "," else { throw ValidationError("expected a tap's name first") }
    let port = try PortArgument(parsing: text)
    guard port.configuration.mac == nil else {
      throw ValidationError("mac: what is behind an uplink has addresses of its own")
    }
    (tap, configuration) = (port.path, port.configuration)
  }
}
