// What is offered, what was chosen, and the configuration space. On the control thread.

import DeviceKit
import HostIO

extension FeatureSet {
  /// VHOST_USER_F_PROTOCOL_FEATURES: bit 30 of the feature words on this wire.
  static let protocolFeatures = FeatureSet(bit: 30)
}

extension Session {
  /// What rings and transport add to the device's own bits.
  static func transportFeatures(of device: any VirtioDevice) -> FeatureSet {
    let usual: FeatureSet = [
      .indirectDescriptors, .eventIndex, .version1, .packedRing, .ringReset, .protocolFeatures, .logAll,
    ]
    return device.supportsIOMMU ? usual.union(.accessPlatform) : usual
  }

  /// May come again at any time, with rings running: nothing is reset by it.
  func setFeatures(_ features: FeatureSet) -> Handling {
    let strange = features.subtracting(offered)
    guard strange.isEmpty else { return .refused("features \(strange) were not offered") }
    if let reason = negotiateTranslation(features, negotiatedProtocol) { return .refused(reason) }
    let wasLogging = acknowledged.contains(.logAll)
    acknowledged = features
    limiter.debug("the driver chose features \(features)")
    // Logging is no choice of the driver's: it is switched while it runs.
    host.device.negotiated(features.subtracting(.logAll))
    reloadState()
    if wasLogging != features.contains(.logAll) { logRunningRings() }
    saveDeviceState()
    if !features.contains(.protocolFeatures) {
      // Without SET_VRING_ENABLE all rings are enabled from the start (vhost-user, "Ring states").
      for (index, ring) in rings.enumerated() where !ring.enabled {
        ring.enabled = true
        if ring.started { host.setEnabled(index, true) }
      }
    }
    return .done
  }

  func setProtocolFeatures(_ features: ProtocolFeatures) -> Handling {
    let strange = features.subtracting(offeredProtocol)
    guard strange.isEmpty else {
      return .refused("protocol features 0x\(String(strange.rawValue, radix: 16)) were not offered")
    }
    if let reason = negotiateTranslation(acknowledged, features) { return .refused(reason) }
    negotiatedProtocol = features
    return .done
  }

  /// What the session itself can do, and what its device can.
  static func protocolFeatures(of device: any VirtioDevice) -> ProtocolFeatures {
    var features: ProtocolFeatures = [
      .multiQueue, .logSharedMemory, .replyAck, .backendRequests, .config, .inflight, .resetDevice,
      .memorySlots, .deviceState,
    ]
    if device.announces { features.insert(.rarp) }
    if device.limitsPackets { features.insert(.networkMTU) }
    return features
  }

  func announce(_ address: UInt64) -> Handling {
    host.device.announce(address)
    return .done
  }

  func setPacketLimit(_ bytes: UInt64) -> Handling {
    guard let limit = UInt16(exactly: bytes), host.device.setPacketLimit(limit) else {
      return .refused("an MTU of \(bytes)")
    }
    return .done
  }

  /// Noted for GET_STATUS. Zero is a reset of the device, and yet changes no ring: QEMU 7.2 sends it before it asks the rings
  /// where they stand.
  func setStatus(_ value: UInt64) -> Handling {
    guard let value = UInt8(exactly: value) else { return .refused("status 0x\(String(value, radix: 16))") }
    status = value
    return .done
  }

  /// Our way to the front-end; a new one replaces the old.
  func setBackendChannel(_ descriptor: consuming OwnedFD?) -> Handling {
    guard let descriptor else { return .refused("a back-end channel without its descriptor") }
    guard (try? FileFacts(of: descriptor))?.kind == .socket else {
      return .refused("a back-end channel that is no socket")
    }
    channel.set(descriptor)
    askAgain()
    return .done
  }

  /// The largest configuration space of any device (vhost-user, VHOST_USER_MAX_CONFIG_SIZE).
  private static var configLimit: UInt64 { 256 }

  /// Answers any range within the limit, zero-filled past the device's fields; an empty answer says that there is none.
  func getConfig(_ reader: inout PayloadReader) -> Handling {
    let offset = reader.u32()
    let size = reader.u32()
    let flags = reader.u32()
    guard size > 0, UInt64(offset) + UInt64(size) <= Self.configLimit else { return .answer([]) }
    var fields = ConfigWriter()
    host.device.readConfig(&fields)
    fields.pad(Int(Self.configLimit) - fields.bytes.count)
    channel.newsRead()
    var answer = PayloadWriter()
    answer.u32(offset)
    answer.u32(size)
    answer.u32(flags)
    return .answer(answer.bytes + fields.bytes[Int(offset)..<Int(offset) + Int(size)])
  }

  /// Flags 0 and 1 (a driver's write, a migration's) are the same to us.
  func setConfig(_ reader: inout PayloadReader) -> Handling {
    let offset = reader.u32()
    let size = reader.u32()
    let flags = reader.u32()
    guard flags <= 1, size > 0, UInt64(offset) + UInt64(size) <= Self.configLimit else {
      return .refused("configuration write of \(size) bytes at \(offset), flags \(flags)")
    }
    let bytes = reader.rest
    do {
      // SAFETY: the span is the local array's, for the length of the call.
      unsafe try host.device.writeConfig(bytes.span.bytes, at: Int(offset))
      saveDeviceState()
      return .done
    } catch {
      return .refused("configuration write of \(size) bytes at \(offset): \(error)")
    }
  }
}
