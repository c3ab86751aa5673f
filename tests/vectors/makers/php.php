<?php
// What PHP programs commonly store, by PHP's own sodium and openssl extensions.
//   php php.php make > ../php.json
//   php php.php open < [{"layout", "key", "value"}, …] > ["plaintext in hex", …]
function sealed(string $like, string $key, string $text): string
{
    if ($like === 'libsodium-token') {
        $nonce = random_bytes(24);
        return 'v1:' . base64_encode($nonce . sodium_crypto_secretbox($text, $nonce, $key));
    }
    if ($like === 'php-aes-gcm') {
        $iv = random_bytes(12);
        $sealed = openssl_encrypt($text, 'aes-256-gcm', $key, OPENSSL_RAW_DATA, $iv, $tag);
        return 'v1:' . base64_encode($iv . $tag . $sealed);
    }
    if ($like === 'xchacha') {
        $nonce = random_bytes(24);
        return bin2hex($nonce . sodium_crypto_aead_xchacha20poly1305_ietf_encrypt($text, '', $nonce, $key));
    }
    $iv = random_bytes(16);
    return base64_encode($iv . openssl_encrypt($text, $like, $key, OPENSSL_RAW_DATA, $iv));
}

function opened(string $like, string $key, string $value): string
{
    $raw = $like === 'xchacha' ? hex2bin($value) : base64_decode(preg_replace('/^v1:/', '', $value), true);
    if ($like === 'libsodium-token') {
        return sodium_crypto_secretbox_open(substr($raw, 24), substr($raw, 0, 24), $key);
    }
    if ($like === 'php-aes-gcm') {
        return openssl_decrypt(
            substr($raw, 28), 'aes-256-gcm', $key, OPENSSL_RAW_DATA, substr($raw, 0, 12), substr($raw, 12, 16)
        );
    }
    if ($like === 'xchacha') {
        $nonce = substr($raw, 0, 24);
        return sodium_crypto_aead_xchacha20poly1305_ietf_decrypt(substr($raw, 24), '', $nonce, $key);
    }
    return openssl_decrypt(substr($raw, 16), $like, $key, OPENSSL_RAW_DATA, substr($raw, 0, 16));
}

$layouts = [
    'libsodium-token' => ['like' => 'libsodium-token'],
    'php-aes-gcm' => ['like' => 'php-aes-gcm'],
    'xchacha' => ['encoding' => 'hex', 'cipher' => 'xchacha20-poly1305'],
    'aes-256-cbc' => ['encoding' => 'base64', 'cipher' => 'aes-256-cbc', 'plaintext' => 'utf8'],
    'aes-128-cbc' => ['encoding' => 'base64', 'cipher' => 'aes-128-cbc', 'plaintext' => 'pattern:.*[a-z].*'],
    'aes-256-ctr' => ['encoding' => 'base64', 'cipher' => 'aes-256-ctr', 'plaintext' => 'json'],
];

if ($argv[1] === 'open') {
    $found = [];
    foreach (json_decode(stream_get_contents(STDIN), true) as $one) {
        $name = array_search($one['layout'], $layouts);
        $found[] = bin2hex(opened($name, hex2bin($one['key']), $one['value']));
    }
    echo json_encode($found);
    exit;
}

$vectors = [];
foreach ($layouts as $name => $layout) {
    $key = random_bytes(str_contains($name, '128') ? 16 : 32);
    $as = ['layout' => $layout, 'key' => bin2hex($key)];
    $texts = ['"a"', '{"iban":"CH93 0076 2011 6238 5295 7","✓":1}', json_encode(str_repeat('x', 300))];
    foreach ($texts as $text) {
        $vectors[] = $as + ['plain' => bin2hex($text), 'value' => sealed($name, $key, $text)];
    }
    $value = sealed($name, $key, '{"a":"value"}');
    $other = ['key' => bin2hex(random_bytes(strlen($key)))] + $as;
    // a wrong key fails in CBC on its padding, or on what the plaintext should look like
    $vectors[] = $other + ['value' => $value, 'fails' => 'unopenable'];
    $vectors[] = $as + ['value' => substr($value, 0, 19), 'fails' => 'malformed'];
    $vectors[] = $as + ['value' => $value . '*', 'fails' => 'malformed'];
}
$maker = 'php ' . PHP_VERSION . ' with sodium ' . SODIUM_LIBRARY_VERSION . ' and ' . OPENSSL_VERSION_TEXT;
$made = ['maker' => $maker, 'vectors' => $vectors];
echo json_encode($made, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES), "\n";
