// The file that `vhost-swiftd serve` reads: JSON, turned into the argument lists that mean the same. On the main thread.

import FoundationEssentials

/// Why a configuration file is refused, in a sentence.
public enum ConfigFileError: Error, Equatable, Sendable {
  /// It cannot be read.
  case unreadable(String)
  /// It says what no configuration file says.
  case wrong(String)
}

/// A device of the file: its place in it, for messages, and its subcommand with options.
public struct ConfiguredDevice: Equatable, Sendable {
  public let place: String
  public let arguments: [String]
}

public enum ConfigFile {
  private struct File: Decodable { let devices: [[String: Value]] }

  /// A value of an option.
  private enum Value: Decodable {
    case text(String)
    case flag(Bool)
    case list([String])

    init(from decoder: any Decoder) throws {
      let container = try decoder.singleValueContainer()
      if let flag = try? container.decode(Bool.self) {
        self = .flag(flag)
      } else if let number = try? container.decode(Int64.self) {
        self = .text(String(number))
      } else if let number = try? container.decode(Double.self) {
        self = .text(String(number))
      } else if let list = try? container.decode([String].self) {
        self = .list(list)
      } else {
        self = .text(try container.decode(String.self))
      }
    }
  }

  /// The longest file that is read, in bytes.
  private static let limit = 1 << 20

  /// The devices of the file at a path.
  public static func devices(in path: String) throws(ConfigFileError) -> [ConfiguredDevice] {
    let data: Data
    do { data = try Data(contentsOf: URL(filePath: path)) } catch {
      throw .unreadable("cannot read '\(path)'")
    }
    return try devices(parsing: data, named: path)
  }

  /// The devices that a file of these bytes has; `named` is how messages speak of it.
  public static func devices(
    parsing bytes: some Sequence<UInt8>, named path: String
  ) throws(ConfigFileError) -> [ConfiguredDevice] {
    let data = Data(bytes)
    guard data.count <= limit else { throw .unreadable("'\(path)' has more than \(limit) bytes") }
    let file: File
    do { file = try JSONDecoder().decode(File.self, from: data) } catch let error as DecodingError {
      throw .wrong("'\(path)': \(sentence(for: error))")
    } catch {
      throw .wrong("'\(path)': not as expected")
    }
    guard !file.devices.isEmpty else { throw .wrong("'\(path)': no devices") }
    var devices: [ConfiguredDevice] = []
    for (index, device) in file.devices.enumerated() {
      devices.append(try configured(device, at: "'\(path)', devices[\(index)]"))
    }
    return devices
  }

  private static func configured(
    _ device: [String: Value], at place: String
  ) throws(ConfigFileError) -> ConfiguredDevice {
    guard case .text(let name) = device["device"] else {
      throw .wrong("\(place): \"device\" is missing: expected \"blk\", \"net\", \"rng\" or \"switch\"")
    }
    var arguments = [name]
    for (key, value) in device.sorted(by: { $0.key < $1.key }) where key != "device" {
      // Whatever else would be no option once it is an argument: none at all, or a sign that joins the dashes before it.
      guard key.utf8.contains(where: isLetter),
        key.utf8.allSatisfy({ isLetter($0) || $0 == UInt8(ascii: "-") })
      else { throw .wrong("\(place): no option is called \"\(key)\"") }
      switch value {
      case .text(let text): arguments += ["--\(key)=\(text)"]
      case .list(let list): arguments += list.map { "--\(key)=\($0)" }
      case .flag(true): arguments += ["--\(key)"]
      case .flag(false): break
      }
    }
    return ConfiguredDevice(place: place, arguments: arguments)
  }

  private static func isLetter(_ byte: UInt8) -> Bool {
    (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
  }

  private static func sentence(for error: DecodingError) -> String {
    switch error {
    case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context),
      .dataCorrupted(let context):
      let place = context.codingPath.map { key in key.intValue.map { "[\($0)]" } ?? ".\(key.stringValue)" }
      return (place.isEmpty ? "" : "at \(place.joined()): ") + context.debugDescription
    @unknown default: return "not as expected"
    }
  }
}
