// Seals, opens, signs, verifies and parses CMS messages with Bouncy Castle: a subcommand a line, files in and out.
// Standard: RFC 5652, RFC 5083, RFC 5084 (GCM), RFC 4055 (OAEP, PSS), RFC 9882 (ML-DSA).

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.X509Certificate;
import java.security.interfaces.ECPrivateKey;
import java.security.interfaces.ECPublicKey;
import java.security.interfaces.RSAPrivateKey;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PSSParameterSpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.StringJoiner;
import javax.crypto.spec.SecretKeySpec;
import org.bouncycastle.asn1.ASN1Encodable;
import org.bouncycastle.asn1.ASN1Encoding;
import org.bouncycastle.asn1.ASN1Integer;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.ASN1OctetString;
import org.bouncycastle.asn1.ASN1Primitive;
import org.bouncycastle.asn1.ASN1Set;
import org.bouncycastle.asn1.DERNull;
import org.bouncycastle.asn1.DEROctetString;
import org.bouncycastle.asn1.DERSequence;
import org.bouncycastle.asn1.DERUTF8String;
import org.bouncycastle.asn1.cms.Attribute;
import org.bouncycastle.asn1.cms.AuthEnvelopedData;
import org.bouncycastle.asn1.cms.CMSObjectIdentifiers;
import org.bouncycastle.asn1.cms.ContentInfo;
import org.bouncycastle.asn1.cms.EncryptedContentInfo;
import org.bouncycastle.asn1.cms.GCMParameters;
import org.bouncycastle.asn1.cms.IssuerAndSerialNumber;
import org.bouncycastle.asn1.cms.KEKIdentifier;
import org.bouncycastle.asn1.cms.KEKRecipientInfo;
import org.bouncycastle.asn1.cms.KEMRecipientInfo;
import org.bouncycastle.asn1.cms.KeyTransRecipientInfo;
import org.bouncycastle.asn1.cms.OtherKeyAttribute;
import org.bouncycastle.asn1.cms.OtherRecipientInfo;
import org.bouncycastle.asn1.cms.RecipientInfo;
import org.bouncycastle.asn1.cms.SignedData;
import org.bouncycastle.asn1.cms.SignerInfo;
import org.bouncycastle.asn1.nist.NISTObjectIdentifiers;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.asn1.pkcs.RSAESOAEPparams;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaCertStore;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.cms.CMSAuthEnvelopedData;
import org.bouncycastle.cms.CMSAuthEnvelopedDataGenerator;
import org.bouncycastle.cms.CMSAuthEnvelopedDataStreamGenerator;
import org.bouncycastle.cms.CMSAlgorithm;
import org.bouncycastle.cms.CMSEnvelopedDataGenerator;
import org.bouncycastle.cms.CMSEnvelopedDataStreamGenerator;
import org.bouncycastle.cms.CMSException;
import org.bouncycastle.cms.CMSProcessableByteArray;
import org.bouncycastle.cms.CMSSignedData;
import org.bouncycastle.cms.CMSSignedDataGenerator;
import org.bouncycastle.cms.CMSSignedDataStreamGenerator;
import org.bouncycastle.cms.KEKRecipientInformation;
import org.bouncycastle.cms.KeyTransRecipientInformation;
import org.bouncycastle.cms.Recipient;
import org.bouncycastle.cms.RecipientInfoGenerator;
import org.bouncycastle.cms.RecipientInformation;
import org.bouncycastle.cms.SignerInfoGenerator;
import org.bouncycastle.cms.SignerInformation;
import org.bouncycastle.cms.jcajce.JcaSignerInfoGeneratorBuilder;
import org.bouncycastle.cms.jcajce.JcaSimpleSignerInfoVerifierBuilder;
import org.bouncycastle.cms.jcajce.JceCMSContentEncryptorBuilder;
import org.bouncycastle.cms.jcajce.JceKEKAuthEnvelopedRecipient;
import org.bouncycastle.cms.jcajce.JceKEKRecipientInfoGenerator;
import org.bouncycastle.cms.jcajce.JceKeyAgreeRecipientInfoGenerator;
import org.bouncycastle.cms.jcajce.JceKeyTransAuthEnvelopedRecipient;
import org.bouncycastle.cms.jcajce.JceKeyTransRecipientInfoGenerator;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.OutputAEADEncryptor;
import org.bouncycastle.operator.OutputEncryptor;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;
import org.bouncycastle.util.encoders.Hex;

/**
 * Each line of standard input is one subcommand, its words between tabs. The answer is one line, "STATUS OCTETS", and
 * then so many octets: 0 with what the subcommand prints, 3 with the reason when the message is refused, 2 for a wrong
 * call. The program ends where its input does.
 */
public final class Interop {
    private static final ASN1ObjectIdentifier QKD_KEY =
        new ASN1ObjectIdentifier("2.25.70870596422438752823789839143307439983");
    private static final String BC = BouncyCastleProvider.PROVIDER_NAME;
    private static final Map<String, Integer> WORDS = Map.of(
        "parse", 2, "to-der", 3, "open-kek", 4, "open-rsa", 4,
        "seal-kek", 6, "seal-rsa", 5, "envelop", 5, "sign", 6, "verify", 4);
    private static final String USAGE = """
        parse FILE                                one line of JSON: content type, recipients, signers, algorithms
        to-der FILE OUT                           the same message in DER
        open-kek FILE OUT KEYHEX
        open-rsa FILE OUT KEY.pem
        seal-kek OUT PAYLOAD FORM KEYHEX KEYID    FORM: der, or ber for Bouncy Castle's streams
        seal-rsa OUT PAYLOAD FORM CERT.pem
        envelop OUT PAYLOAD FORM CERT.pem         AES-256-CBC, PKCS#1 v1.5 or ECDH
        sign OUT PAYLOAD FORM KEY.pem CERT.pem    ML-DSA-87 with SHA-512, RSASSA-PSS or ECDSA with SHA-256
        verify FILE OUT CERT.pem""";

    public static void main(String[] args) throws IOException {
        Security.addProvider(new BouncyCastleProvider());
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            try {
                answer(0, run(line.split("\t", -1)));
            } catch (IllegalCallException wrong) {
                answer(2, USAGE);
            } catch (Exception refused) {
                StringBuilder reason = new StringBuilder(refused.toString());
                for (Throwable cause = refused.getCause(); cause != null; cause = cause.getCause()) {
                    reason.append("\n  because: ").append(cause);
                }
                answer(3, reason.toString());
            }
        }
    }

    private static void answer(int status, String text) {
        byte[] octets = text.getBytes(StandardCharsets.UTF_8);
        System.out.print(status + " " + octets.length + "\n");
        System.out.writeBytes(octets);
        System.out.flush();
    }

    /** What the subcommand prints; only one prints anything. */
    private static String run(String[] args) throws Exception {
        if (!Integer.valueOf(args.length).equals(WORDS.get(args[0]))) {
            throw new IllegalCallException();
        }
        switch (args[0]) {
            case "parse" -> {
                return json(summary(read(args[1])));
            }
            case "to-der" -> write(args[2], toDER(read(args[1])));
            case "open-kek" -> write(args[2], open(
                read(args[1]),
                new JceKEKAuthEnvelopedRecipient(new SecretKeySpec(Hex.decode(args[3]), "AES")).setProvider(BC),
                KEKRecipientInformation.class));
            case "open-rsa" -> write(args[2], open(
                read(args[1]),
                new JceKeyTransAuthEnvelopedRecipient(key(args[3])).setProvider(BC),
                KeyTransRecipientInformation.class));
            case "seal-kek" -> write(args[1], seal(read(args[2]), args[3], kekRecipient(args[4], args[5])));
            case "seal-rsa" -> write(args[1], seal(read(args[2]), args[3], rsaRecipient(certificate(args[4]))));
            case "envelop" -> write(args[1], envelop(read(args[2]), args[3], x509(certificate(args[4]))));
            case "sign" -> write(args[1], sign(read(args[2]), args[3], key(args[4]), certificate(args[5])));
            case "verify" -> write(args[2], verify(read(args[1]), certificate(args[3])));
            default -> throw new AssertionError(args[0]);
        }
        return "";
    }

    // Opening

    /** The content, after its tag was verified by the provider's cipher. */
    private static byte[] open(byte[] message, Recipient recipient, Class<?> kind) throws Exception {
        for (RecipientInformation information : new CMSAuthEnvelopedData(message).getRecipientInfos()) {
            if (kind.isInstance(information)) {
                return information.getContent(recipient);
            }
        }
        throw new CMSException("no " + kind.getSimpleName() + " in the message");
    }

    // Sealing

    /** With the attribute that says whose key it is: from Alice (SAE 2) to Bob (SAE 1), of the group alice-bob. */
    private static RecipientInfoGenerator kekRecipient(String keyHex, String keyID) throws IOException {
        DERSequence names = new DERSequence(new ASN1Encodable[] {
            new DERUTF8String("2"), new DERUTF8String("1"), new DERUTF8String("alice-bob")});
        KEKIdentifier identifier = new KEKIdentifier(
            keyID.getBytes(StandardCharsets.UTF_8), null, new OtherKeyAttribute(QKD_KEY, names));
        return new JceKEKRecipientInfoGenerator(
            identifier, new SecretKeySpec(Hex.decode(keyHex), "AES")).setProvider(BC);
    }

    /** RSAES-OAEP with SHA-256, MGF1 with SHA-256 and no label. */
    private static RecipientInfoGenerator rsaRecipient(X509CertificateHolder certificate) throws Exception {
        AlgorithmIdentifier sha256 = new AlgorithmIdentifier(NISTObjectIdentifiers.id_sha256, DERNull.INSTANCE);
        AlgorithmIdentifier oaep = new AlgorithmIdentifier(
            PKCSObjectIdentifiers.id_RSAES_OAEP,
            new RSAESOAEPparams(
                sha256,
                new AlgorithmIdentifier(PKCSObjectIdentifiers.id_mgf1, sha256),
                RSAESOAEPparams.DEFAULT_P_SOURCE_ALGORITHM));
        return new JceKeyTransRecipientInfoGenerator(x509(certificate), oaep).setProvider(BC);
    }

    private static byte[] seal(byte[] payload, String form, RecipientInfoGenerator recipient) throws Exception {
        OutputAEADEncryptor encryptor = (OutputAEADEncryptor)
            new JceCMSContentEncryptorBuilder(NISTObjectIdentifiers.id_aes256_GCM).setProvider(BC).build();
        int tag = GCMParameters.getInstance(encryptor.getAlgorithmIdentifier().getParameters()).getIcvLen();
        if (tag != 16) {
            throw new CMSException("Bouncy Castle chose a tag of " + tag + " octets");
        }
        if (isBER(form)) {
            CMSAuthEnvelopedDataStreamGenerator generator = new CMSAuthEnvelopedDataStreamGenerator();
            generator.addRecipientInfoGenerator(recipient);
            ByteArrayOutputStream message = new ByteArrayOutputStream();
            try (OutputStream content = generator.open(message, encryptor)) {
                content.write(payload);
            }
            return message.toByteArray();
        }
        CMSAuthEnvelopedDataGenerator generator = new CMSAuthEnvelopedDataGenerator();
        generator.addRecipientInfoGenerator(recipient);
        return generator.generate(new CMSProcessableByteArray(payload), encryptor)
            .toASN1Structure().getEncoded(ASN1Encoding.DER);
    }

    /** EnvelopedData, which nothing authenticates. */
    private static byte[] envelop(byte[] payload, String form, X509Certificate certificate) throws Exception {
        RecipientInfoGenerator recipient = certificate.getPublicKey() instanceof ECPublicKey point
            ? agreement(point, certificate)
            : new JceKeyTransRecipientInfoGenerator(certificate).setProvider(BC);
        OutputEncryptor encryptor = new JceCMSContentEncryptorBuilder(CMSAlgorithm.AES256_CBC).setProvider(BC).build();
        if (isBER(form)) {
            CMSEnvelopedDataStreamGenerator generator = new CMSEnvelopedDataStreamGenerator();
            generator.addRecipientInfoGenerator(recipient);
            ByteArrayOutputStream message = new ByteArrayOutputStream();
            try (OutputStream content = generator.open(message, encryptor)) {
                content.write(payload);
            }
            return message.toByteArray();
        }
        CMSEnvelopedDataGenerator generator = new CMSEnvelopedDataGenerator();
        generator.addRecipientInfoGenerator(recipient);
        return generator.generate(new CMSProcessableByteArray(payload), encryptor).getEncoded();
    }

    private static RecipientInfoGenerator agreement(ECPublicKey theirs, X509Certificate certificate) throws Exception {
        KeyPairGenerator pairs = KeyPairGenerator.getInstance("EC", BC);
        pairs.initialize(theirs.getParams());
        KeyPair pair = pairs.generateKeyPair();
        return new JceKeyAgreeRecipientInfoGenerator(
            CMSAlgorithm.ECDH_SHA256KDF, pair.getPrivate(), pair.getPublic(), CMSAlgorithm.AES256_WRAP)
            .addRecipient(certificate).setProvider(BC);
    }

    // Signatures

    private static byte[] sign(byte[] payload, String form, PrivateKey key, X509CertificateHolder certificate)
            throws Exception {
        boolean rsa = key instanceof RSAPrivateKey;
        boolean ec = key instanceof ECPrivateKey;
        JcaContentSignerBuilder builder = rsa
            ? new JcaContentSignerBuilder("SHA256WITHRSAANDMGF1",
                new PSSParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, 32, 1))
            : new JcaContentSignerBuilder(ec ? "SHA256WITHECDSA" : "ML-DSA-87");
        ContentSigner signer = builder.setProvider(BC).build(key);
        SignerInfoGenerator information = new JcaSignerInfoGeneratorBuilder(
            new JcaDigestCalculatorProviderBuilder().setProvider(BC).build())
            .setContentDigest(new AlgorithmIdentifier(
                rsa || ec ? NISTObjectIdentifiers.id_sha256 : NISTObjectIdentifiers.id_sha512))
            .build(signer, certificate);
        JcaCertStore certificates = new JcaCertStore(List.of(certificate));
        if (isBER(form)) {
            CMSSignedDataStreamGenerator generator = new CMSSignedDataStreamGenerator();
            generator.addSignerInfoGenerator(information);
            generator.addCertificates(certificates);
            ByteArrayOutputStream message = new ByteArrayOutputStream();
            try (OutputStream content = generator.open(message, true)) {
                content.write(payload);
            }
            return message.toByteArray();
        }
        CMSSignedDataGenerator generator = new CMSSignedDataGenerator();
        generator.addSignerInfoGenerator(information);
        generator.addCertificates(certificates);
        return generator.generate(new CMSProcessableByteArray(payload), true)
            .toASN1Structure().getEncoded(ASN1Encoding.DER);
    }

    /** The content, when it has one signer or more and `certificate` verifies them all. */
    private static byte[] verify(byte[] message, X509CertificateHolder certificate) throws Exception {
        CMSSignedData signed = new CMSSignedData(message);
        if (signed.getSignerInfos().size() == 0 || signed.getSignedContent() == null) {
            throw new CMSException("no signer, or no content");
        }
        for (SignerInformation signer : signed.getSignerInfos()) {
            if (!signer.verify(new JcaSimpleSignerInfoVerifierBuilder().setProvider(BC).build(certificate))) {
                throw new CMSException("the signature does not verify");
            }
        }
        return (byte[]) signed.getSignedContent().getContent();
    }

    // Summaries

    private static Map<String, Object> summary(byte[] message) throws IOException {
        ContentInfo outer = ContentInfo.getInstance(ASN1Primitive.fromByteArray(message));
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("content_type", outer.getContentType().getId());
        if (CMSObjectIdentifiers.authEnvelopedData.equals(outer.getContentType())) {
            addEnveloped(found, AuthEnvelopedData.getInstance(outer.getContent()));
        } else if (CMSObjectIdentifiers.signedData.equals(outer.getContentType())) {
            addSigned(found, SignedData.getInstance(outer.getContent()));
        }
        return found;
    }

    private static byte[] toDER(byte[] message) throws IOException {
        ContentInfo outer = ContentInfo.getInstance(ASN1Primitive.fromByteArray(message));
        ASN1Encodable content = CMSObjectIdentifiers.signedData.equals(outer.getContentType())
            ? SignedData.getInstance(outer.getContent())
            : AuthEnvelopedData.getInstance(outer.getContent());
        return new ContentInfo(outer.getContentType(), content).getEncoded(ASN1Encoding.DER);
    }

    private static void addEnveloped(Map<String, Object> found, AuthEnvelopedData data) {
        EncryptedContentInfo encrypted = data.getAuthEncryptedContentInfo();
        found.put("inner_type", encrypted.getContentType().getId());
        found.put("content_encryption", encrypted.getContentEncryptionAlgorithm().getAlgorithm().getId());
        if (NISTObjectIdentifiers.id_aes256_GCM.equals(encrypted.getContentEncryptionAlgorithm().getAlgorithm())) {
            GCMParameters gcm = GCMParameters.getInstance(encrypted.getContentEncryptionAlgorithm().getParameters());
            found.put("nonce_octets", gcm.getNonce().length);
            found.put("icv_length", gcm.getIcvLen());
        }
        found.put("content_octets", encrypted.getEncryptedContent().getOctets().length);
        found.put("tag_octets", data.getMac().getOctets().length);
        List<Object> recipients = new ArrayList<>();
        for (ASN1Encodable element : data.getRecipientInfos()) {
            recipients.add(recipient(RecipientInfo.getInstance(element).getInfo()));
        }
        found.put("recipients", recipients);
    }

    private static Map<String, Object> recipient(ASN1Encodable information) {
        Map<String, Object> found = new LinkedHashMap<>();
        if (information instanceof KEKRecipientInfo kek) {
            found.put("kind", "kek");
            found.put("version", kek.getVersion().intValueExact());
            found.put("key_identifier", Hex.toHexString(kek.getKekid().getKeyIdentifier().getOctets()));
            OtherKeyAttribute other = kek.getKekid().getOther();
            found.put("attribute", other == null ? "" : other.getKeyAttrId().getId());
            found.put("wrap", kek.getKeyEncryptionAlgorithm().getAlgorithm().getId());
            found.put("encrypted_key_octets", kek.getEncryptedKey().getOctets().length);
        } else if (information instanceof KeyTransRecipientInfo transport) {
            found.put("kind", "key-transport");
            found.put("version", transport.getVersion().intValueExact());
            addIdentifier(found, transport.getRecipientIdentifier().getId());
            found.put("algorithm", transport.getKeyEncryptionAlgorithm().getAlgorithm().getId());
            if (PKCSObjectIdentifiers.id_RSAES_OAEP.equals(transport.getKeyEncryptionAlgorithm().getAlgorithm())) {
                RSAESOAEPparams oaep =
                    RSAESOAEPparams.getInstance(transport.getKeyEncryptionAlgorithm().getParameters());
                found.put("hash", oaep.getHashAlgorithm().getAlgorithm().getId());
                found.put("mask_hash", AlgorithmIdentifier.getInstance(
                    oaep.getMaskGenAlgorithm().getParameters()).getAlgorithm().getId());
            }
            found.put("encrypted_key_octets", transport.getEncryptedKey().getOctets().length);
        } else if (information instanceof OtherRecipientInfo other
                && CMSObjectIdentifiers.id_ori_kem.equals(other.getType())) {
            KEMRecipientInfo kem = KEMRecipientInfo.getInstance(other.getValue());
            found.put("kind", "kem");
            addIdentifier(found, kem.getRecipientIdentifier().getId());
            found.put("algorithm", kem.getKem().getAlgorithm().getId());
            found.put("kdf", kem.getKdf().getAlgorithm().getId());
            found.put("wrap", kem.getWrap().getAlgorithm().getId());
            found.put("ciphertext_octets", kem.getKemct().getOctets().length);
            found.put("encrypted_key_octets", kem.getEncryptedKey().getOctets().length);
        } else if (information instanceof OtherRecipientInfo other) {
            found.put("kind", "other");
            found.put("algorithm", other.getType().getId());
        } else {
            found.put("kind", information.getClass().getSimpleName());
        }
        return found;
    }

    private static void addSigned(Map<String, Object> found, SignedData data) {
        found.put("inner_type", data.getEncapContentInfo().getContentType().getId());
        found.put("content_octets",
            ASN1OctetString.getInstance(data.getEncapContentInfo().getContent()).getOctets().length);
        found.put("certificates", data.getCertificates() == null ? 0 : data.getCertificates().size());
        List<Object> signers = new ArrayList<>();
        for (ASN1Encodable element : data.getSignerInfos()) {
            SignerInfo information = SignerInfo.getInstance(element);
            Map<String, Object> signer = new LinkedHashMap<>();
            signer.put("version", information.getVersion().intValueExact());
            addIdentifier(signer, information.getSID().getId());
            signer.put("digest", information.getDigestAlgorithm().getAlgorithm().getId());
            signer.put("signature", information.getDigestEncryptionAlgorithm().getAlgorithm().getId());
            List<Object> attributes = new ArrayList<>();
            ASN1Set signedAttributes = information.getAuthenticatedAttributes();
            if (signedAttributes != null) {
                for (ASN1Encodable attribute : signedAttributes) {
                    attributes.add(Attribute.getInstance(attribute).getAttrType().getId());
                }
            }
            signer.put("signed_attributes", attributes);
            signers.add(signer);
        }
        found.put("signers", signers);
    }

    private static void addIdentifier(Map<String, Object> found, ASN1Encodable identifier) {
        if (identifier instanceof ASN1OctetString key) {
            found.put("subject_key_identifier", Hex.toHexString(key.getOctets()));
        } else {
            IssuerAndSerialNumber named = IssuerAndSerialNumber.getInstance(identifier);
            found.put("issuer", named.getName().toString());
            found.put("serial", named.getSerialNumber().getValue().toString());
        }
    }

    private static String json(Object value) {
        if (value instanceof Map<?, ?> map) {
            StringJoiner members = new StringJoiner(", ", "{", "}");
            map.forEach((name, member) -> members.add(json(name) + ": " + json(member)));
            return members.toString();
        }
        if (value instanceof List<?> list) {
            StringJoiner elements = new StringJoiner(", ", "[", "]");
            list.forEach(element -> elements.add(json(element)));
            return elements.toString();
        }
        if (value instanceof String text) {
            return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
        }
        return String.valueOf(value);
    }

    // Files

    private static boolean isBER(String form) throws IllegalCallException {
        if (!form.equals("ber") && !form.equals("der")) {
            throw new IllegalCallException();
        }
        return form.equals("ber");
    }

    private static byte[] read(String path) throws IOException {
        return Files.readAllBytes(Path.of(path));
    }

    private static void write(String path, byte[] octets) throws IOException {
        Files.write(Path.of(path), octets);
    }

    private static Object pem(String path) throws IOException {
        try (Reader reader = Files.newBufferedReader(Path.of(path)); PEMParser parser = new PEMParser(reader)) {
            return parser.readObject();
        }
    }

    /** PKCS#8; where it holds the seed form `[0] IMPLICIT OCTET STRING`, Bouncy Castle 1.80 wants the bare seed. */
    private static PrivateKey key(String path) throws IOException {
        PrivateKeyInfo found = (PrivateKeyInfo) pem(path);
        byte[] octets = found.getPrivateKey().getOctets();
        if (octets.length > 2 && octets[0] == (byte) 0x80 && octets[1] == octets.length - 2) {
            byte[] seed = Arrays.copyOfRange(octets, 2, octets.length);
            AlgorithmIdentifier algorithm = found.getPrivateKeyAlgorithm();
            found = PrivateKeyInfo.getInstance(new DERSequence(new ASN1Encodable[] {
                new ASN1Integer(0), algorithm, new DEROctetString(seed)}));
        }
        return new JcaPEMKeyConverter().setProvider(BC).getPrivateKey(found);
    }

    private static X509CertificateHolder certificate(String path) throws IOException {
        return (X509CertificateHolder) pem(path);
    }

    private static X509Certificate x509(X509CertificateHolder certificate) throws Exception {
        return new JcaX509CertificateConverter().setProvider(BC).getCertificate(certificate);
    }

    private static final class IllegalCallException extends Exception {
        private static final long serialVersionUID = 1;
    }
}
